# Tables and claims. Their names have no key, so the plan finds out whether those on disk are up to date; if not,
# "outdated" is a file that is newer than they are.


rule tables:
    input:
        plan.outputs("table"),
        plan.outputs("claims"),


rule table:
    input:
        evaluations=ancient(plan.inputs("table", made_by="evaluate")),
        timings=ancient(plan.inputs("table", made_by="measure_speed")),
        outdated=plan.outdated("table"),
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
        **plan.asked("table"),
    params:
        job=plan.job_file("table"),
    shell:
        "deop table {params.job} --threads {threads} 2>&1 | tee {log}"


rule claims:
    input:
        evaluations=ancient(plan.inputs("claims", made_by="evaluate")),
        outdated=plan.outdated("claims"),
    output:
        csv=report(
            "results/claims.csv",
            caption="../report/claims.rst",
            category="Tables",
            labels={"table": "claims", "format": "CSV"},
        ),
        markdown=report(
            "results/claims.md",
            caption="../report/claims.rst",
            category="Tables",
            labels={"table": "claims", "format": "Markdown"},
        ),
        latex="results/claims.tex",
        json="results/claims.json",
    log:
        "logs/claims.log",
    benchmark:
        "benchmarks/claims.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.claims.threads
    resources:
        **plan.asked("claims"),
    params:
        job=plan.job_file("claims"),
    shell:
        "deop claims {params.job} --threads {threads} 2>&1 | tee {log}"
