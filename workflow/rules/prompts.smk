# Text prompts learned offline, per dataset and seed (section 3.2).


rule prompts:
    input:
        plan.outputs("learn_prompts"),


rule learn_prompts:
    input:
        data=ancient(plan.input("learn_prompts", "data")),
        clip=ancient(plan.input("learn_prompts", "clip")),
    output:
        model="checkpoints/prompts/{name}-{key}/model.safetensors",
        provenance="checkpoints/prompts/{name}-{key}/provenance.json",
    log:
        "logs/learn_prompts/{name}-{key}.log",
    benchmark:
        "benchmarks/learn_prompts/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.learn_prompts.threads
    resources:
        **plan.asked("learn_prompts"),
    params:
        launch=plan.launch("learn_prompts"),  # all crops are embedded once: nothing to share out
        job=plan.job_file("learn_prompts"),
    shell:
        "{params.launch} learn-prompts {params.job} --threads {threads} 2>&1 | tee {log}"
