# Tables. Their names carry no key, so the plan says when one on disk is not the one the configuration asks for.


rule tables:
    input:
        plan.outputs("table"),


rule table:
    input:
        evaluations=ancient(plan.inputs("table")),
        superseded=plan.superseded,
    output:
        csv=report(
            "results/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "CSV"},
        ),
        markdown=report(
            "results/{table}.md",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "Markdown"},
        ),
        latex="results/{table}.tex",
        metrics=directory("results/metrics/{table}"),
        json="results/{table}.json",
    log:
        "logs/table/{table}.log",
    benchmark:
        "benchmarks/table/{table}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.table.threads
    resources:
        mem_mb=plan.resources.table.mem_mb,
        gpus=plan.resources.table.gpus,
        runtime=plan.resources.table.runtime,
    params:
        job=plan.job_file("table"),
    shell:
        "deop table {params.job} --threads {threads} 2>&1 | tee {log}"
