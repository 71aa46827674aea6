# Networks trained end to end, per experiment, dataset and seed (sections 3.2 and 4).


rule segmentation:
    input:
        plan.outputs("train_segmentation"),


rule train_segmentation:
    input:
        ancient(plan.inputs("train_segmentation")),
    output:
        model="checkpoints/segmentation/{name}-{key}/model.safetensors",
        provenance="checkpoints/segmentation/{name}-{key}/provenance.json",
    log:
        "logs/train_segmentation/{name}-{key}.log",
    benchmark:
        "benchmarks/train_segmentation/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.train_segmentation.threads
    resources:
        mem_mb=plan.resources.train_segmentation.mem_mb,
        gpu=plan.resources.train_segmentation.gpu,
        runtime=plan.resources.train_segmentation.runtime,
    params:
        launch=plan.launch,
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("train_segmentation"),
    shell:
        "{params.launch} train-segmentation {params.job} --threads {params.threads} 2>&1 | tee {log}"
