# Class-agnostic mask proposals, per dataset and seed (section 3.1).


rule proposals:
    input:
        plan.outputs("train_proposals"),


rule train_proposals:
    input:
        data=ancient(plan.input("train_proposals", "data")),
        backbone=ancient(plan.input("train_proposals", "backbone")),
        # With a class term in the loss, also:
        clip=ancient(plan.input("train_proposals", "clip")),
        prompts=ancient(plan.input("train_proposals", "prompts")),
    output:
        model="checkpoints/proposals/{name}-{key}/model.safetensors",
        provenance="checkpoints/proposals/{name}-{key}/provenance.json",
    log:
        "logs/train_proposals/{name}-{key}.log",
    benchmark:
        "benchmarks/train_proposals/{name}-{key}.tsv"
    priority: 1  # the longest chain starts here
    conda:
        "../../environment.yml"
    threads: plan.resources.train_proposals.threads
    resources:
        **plan.asked("train_proposals"),
    params:
        launch=plan.launch("train_proposals"),
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("train_proposals"),
    shell:
        "{params.launch} train-proposals {params.job} --threads {params.threads} 2>&1 | tee {log}"
