# Systems, per experiment, dataset and seed: trained end to end, unless their method is not trained, and put into one folder
# each, which evaluation, speed and pictures start from.


rule systems:
    input:
        plan.outputs("build_system"),


rule train_system:
    input:
        data=ancient(plan.input("train_system", "data")),
        clip=ancient(plan.input("train_system", "clip")),
        prompts=ancient(plan.input("train_system", "prompts")),
        proposals=ancient(plan.input("train_system", "proposals")),
        backbone=ancient(plan.input("train_system", "backbone")),
        earlier=ancient(plan.input("train_system", "earlier")),  # of the round of training before, if there is one
    output:
        model="checkpoints/training/{name}-{key}/model.safetensors",
        provenance="checkpoints/training/{name}-{key}/provenance.json",
    log:
        "logs/train_system/{name}-{key}.log",
    benchmark:
        "benchmarks/train_system/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.train_system.threads
    resources:
        **plan.asked("train_system"),
    params:
        launch=plan.launch("train_system"),
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("train_system"),
    shell:
        "{params.launch} train-system {params.job} --threads {params.threads} 2>&1 | tee {log}"


rule build_system:
    input:
        data=ancient(plan.input("build_system", "data")),
        clip=ancient(plan.input("build_system", "clip")),
        prompts=ancient(plan.input("build_system", "prompts")),
        proposals=ancient(plan.input("build_system", "proposals")),
        trained=ancient(plan.input("build_system", "trained")),
    output:
        config="checkpoints/systems/{name}-{key}/config.json",
        model="checkpoints/systems/{name}-{key}/model.safetensors",
        provenance="checkpoints/systems/{name}-{key}/provenance.json",
    log:
        "logs/build_system/{name}-{key}.log",
    benchmark:
        "benchmarks/build_system/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.build_system.threads
    resources:
        **plan.asked("build_system"),
    params:
        job=plan.job_file("build_system"),
    shell:
        "deop build-system {params.job} --threads {threads} 2>&1 | tee {log}"
