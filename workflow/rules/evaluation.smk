# Networks measured on validation sets.


rule evaluations:
    input:
        plan.outputs("evaluate"),


rule evaluate:
    input:
        ancient(plan.inputs("evaluate")),
    output:
        "results/evaluations/{name}-{key}.json",
    log:
        "logs/evaluate/{name}-{key}.log",
    benchmark:
        "benchmarks/evaluate/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.evaluate.threads
    resources:
        mem_mb=plan.resources.evaluate.mem_mb,
        gpus=plan.resources.evaluate.gpus,
        runtime=plan.resources.evaluate.runtime,
    params:
        launch=plan.launch,
        job=plan.job_file("evaluate"),
    shell:
        "{params.launch} evaluate {params.job} --threads {threads} 2>&1 | tee {log}"
