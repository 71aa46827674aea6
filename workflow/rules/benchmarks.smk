# Speed of networks with random weights, in total and by part. The names of the results have no key (see tables.smk).


rule benchmarks:
    input:
        plan.outputs("benchmark"),


rule benchmark:
    input:
        outdated=plan.outdated("benchmark"),
    output:
        csv=report(
            "results/{benchmark}.csv",
            caption="../report/benchmark.rst",
            category="Tables",
            labels={"table": "{benchmark}", "format": "CSV"},
        ),
        markdown=report(
            "results/{benchmark}.md",
            caption="../report/benchmark.rst",
            category="Tables",
            labels={"table": "{benchmark}", "format": "Markdown"},
        ),
        json="results/{benchmark}.json",
    log:
        "logs/benchmark/{benchmark}.log",
    benchmark:
        "benchmarks/benchmark/{benchmark}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.threads_alone("benchmark", workflow.resource_settings.cores)
    resources:
        **plan.asked("benchmark"),
    params:
        launch=plan.launch("benchmark"),
        job=plan.job_file("benchmark"),
    shell:
        "{params.launch} benchmark {params.job} --threads {threads} 2>&1 | tee {log}"
