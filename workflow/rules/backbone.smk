# Pre-training of the proposal network's backbone on single emoji; only needed if pretrain_backbone.retrain is true.


rule backbone:
    input:
        plan.outputs("pretrain_backbone"),


rule pretrain_backbone:
    output:
        model="checkpoints/backbone/{name}-{key}/model.safetensors",
        provenance="checkpoints/backbone/{name}-{key}/provenance.json",
    log:
        "logs/pretrain_backbone/{name}-{key}.log",
    benchmark:
        "benchmarks/pretrain_backbone/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.pretrain_backbone.threads
    resources:
        **plan.asked("pretrain_backbone"),
    params:
        launch=plan.launch("pretrain_backbone"),
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("pretrain_backbone"),
    shell:
        "{params.launch} pretrain-backbone {params.job} --threads {params.threads} 2>&1 | tee {log}"
