# Datasets, written to disk once, with a picture of some scenes and their labels.


rule datasets:
    input:
        plan.outputs("prepare_data"),


rule prepare_data:
    output:
        dataset="data/{name}-{key}/dataset.json",
        sheet=report(
            "data/{name}-{key}/contact_sheet.png",
            caption="../report/contact_sheet.rst",
            category="Datasets",
            labels={"dataset": "{name}"},
        ),
    log:
        "logs/prepare_data/{name}-{key}.log",
    benchmark:
        "benchmarks/prepare_data/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.prepare_data.threads
    resources:
        mem_mb=plan.resources.prepare_data.mem_mb,
        gpus=plan.resources.prepare_data.gpus,
        runtime=plan.resources.prepare_data.runtime,
    params:
        job=plan.job_file("prepare_data"),
    shell:
        "deop prepare-data {params.job} --threads {threads} 2>&1 | tee {log}"
