# Datasets: generated, or downloaded and prepared, each with a contact sheet of images and labels.


rule datasets:
    input:
        plan.outputs("prepare_data"),


rule download:
    output:
        "data/sources/{name}-{key}.json",
    log:
        "logs/download/{name}-{key}.log",
    benchmark:
        "benchmarks/download/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.download.threads
    resources:
        **plan.asked("download"),
    params:
        job=plan.job_file("download"),
    shell:
        "deop download {params.job} --threads {threads} 2>&1 | tee {log}"


rule prepare_data:
    input:
        sources=ancient(plan.inputs("prepare_data", made_by="download")),
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
        **plan.asked("prepare_data"),
    params:
        job=plan.job_file("prepare_data"),
    shell:
        "deop prepare-data {params.job} --threads {threads} 2>&1 | tee {log}"
