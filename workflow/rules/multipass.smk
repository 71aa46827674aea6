# Multi-pass systems: proposals and a class head on names, per system, dataset and seed (figure 1b).


rule multipass:
    input:
        plan.outputs("train_multipass"),


rule train_multipass:
    input:
        ancient(plan.inputs("train_multipass")),
    output:
        model="checkpoints/multipass/{name}-{key}/model.safetensors",
        provenance="checkpoints/multipass/{name}-{key}/provenance.json",
    log:
        "logs/train_multipass/{name}-{key}.log",
    benchmark:
        "benchmarks/train_multipass/{name}-{key}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.train_multipass.threads
    resources:
        mem_mb=plan.resources.train_multipass.mem_mb,
        gpu=plan.resources.train_multipass.gpu,
        runtime=plan.resources.train_multipass.runtime,
    params:
        launch=plan.launch,
        threads=lambda wildcards, threads: max(1, threads // plan.processes),
        job=plan.job_file("train_multipass"),
    shell:
        "{params.launch} train-multipass {params.job} --threads {params.threads} 2>&1 | tee {log}"
