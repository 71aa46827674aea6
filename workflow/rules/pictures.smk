# Pictures of a system at work. The names of the results have no key (see tables.smk).


rule pictures:
    input:
        plan.outputs("picture"),


rule picture:
    input:
        data=ancient(plan.input("picture", "data")),
        system=ancient(plan.input("picture", "system")),
        outdated=plan.outdated("picture"),
    output:
        image=report(
            "results/figures/{picture}.png",
            caption="../report/picture.rst",
            category="Figures",
            labels={"figure": "{picture}"},
        ),
        svg="results/figures/{picture}.svg",
        json="results/figures/{picture}.json",
    log:
        "logs/picture/{picture}.log",
    benchmark:
        "benchmarks/picture/{picture}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.picture.threads
    resources:
        **plan.asked("picture"),
    params:
        launch=plan.launch("picture"),
        job=plan.job_file("picture"),
    shell:
        "{params.launch} picture {params.job} --threads {threads} 2>&1 | tee {log}"
