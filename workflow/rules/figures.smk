# Plots of tables, benchmarks, and scores by class. The names of the results have no key (see tables.smk).


rule figures:
    input:
        plan.outputs("figure"),


rule figure:
    input:
        evaluations=ancient(plan.inputs("figure", made_by="evaluate")),
        timings=ancient(plan.inputs("figure", made_by="measure_speed")),
        benchmark=plan.input("figure", "benchmark"),
        outdated=plan.outdated("figure"),
    output:
        image=report(
            "results/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        svg="results/figures/{figure}.svg",
        json="results/figures/{figure}.json",
    log:
        "logs/figure/{figure}.log",
    benchmark:
        "benchmarks/figure/{figure}.tsv"
    conda:
        "../../environment.yml"
    threads: plan.resources.figure.threads
    resources:
        **plan.asked("figure"),
    params:
        job=plan.job_file("figure"),
    shell:
        "deop figure {params.job} --threads {threads} 2>&1 | tee {log}"
