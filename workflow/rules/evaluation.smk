# Systems evaluated on validation sets: how well they segment, and how fast.


rule evaluations:
    input:
        plan.outputs("evaluate"),


rule timings:
    input:
        plan.outputs("measure_speed"),


rule evaluate:
    input:
        data=ancient(plan.input("evaluate", "data")),
        system=ancient(plan.input("evaluate", "system")),
    output:
        scores="results/evaluations/{evaluation}-{key}.json",
        confusion="results/evaluations/{evaluation}-{key}.csv",
    log:
        "logs/evaluate/{evaluation}-{key}.log",
    benchmark:
        "benchmarks/evaluate/{evaluation}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.evaluate.threads
    resources:
        **plan.asked("evaluate"),
    params:
        launch=plan.launch("evaluate"),
        job=plan.job_file("evaluate"),
    shell:
        "{params.launch} evaluate {params.job} --threads {threads} 2>&1 | tee {log}"


rule measure_speed:
    input:
        data=ancient(plan.inputs("measure_speed", made_by="prepare_data")),
        systems=ancient(plan.inputs("measure_speed", made_by="build_system")),
    output:
        "results/speed/{measurement}-{key}.json",
    log:
        "logs/measure_speed/{measurement}-{key}.log",
    benchmark:
        "benchmarks/measure_speed/{measurement}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.threads_alone("measure_speed", workflow.resource_settings.cores)
    resources:
        **plan.asked("measure_speed"),
    params:
        launch=plan.launch("measure_speed"),
        job=plan.job_file("measure_speed"),
    shell:
        "{params.launch} measure-speed {params.job} --threads {threads} 2>&1 | tee {log}"
