# Contrastive pre-training of the mini CLIP; only needed if clip.retrain is true.


rule clip:
    input:
        plan.outputs("pretrain_clip"),


rule pretrain_clip:
    input:
        clip=ancient(plan.input("pretrain_clip", "clip")),  # of the round before, if there is one
    output:
        model="checkpoints/clip/{name}-{key}/model.safetensors",
        provenance="checkpoints/clip/{name}-{key}/provenance.json",
    log:
        "logs/pretrain_clip/{name}-{key}.log",
    benchmark:
        "benchmarks/pretrain_clip/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.pretrain_clip.threads
    resources:
        **plan.asked("pretrain_clip"),
    params:
        launch=plan.launch("pretrain_clip"),
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("pretrain_clip"),
    shell:
        "{params.launch} pretrain-clip {params.job} --threads {params.threads} 2>&1 | tee {log}"
