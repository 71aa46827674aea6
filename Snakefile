# What to make is decided by the configuration (config/, read by deop.jobs.plan); these rules say how, stage by stage.
# Outputs carry the key of what made them in their names, so one that is there never needs to be made again.

import re
import sys
from pathlib import Path

from snakemake.utils import min_version

from deop.jobs.configuration_state import configuration_state, tell_stages
from deop.errors import DeopError
from deop.jobs.plan import Plan
from deop.utils.machine import shared_resources

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


try:
    plan = Plan(config)
    tell_stages(configuration_state(config, plan.config_files, workflow.overwrite_configfiles, Path()))
except DeopError as error:
    sys.exit(f"deop: {error}")
plan.write()

# Jobs on this machine share its memory and GPUs, unless --resources says what they may have.
if workflow.is_main_process and workflow.resource_settings.nodes is None:
    for name, amount in shared_resources().items():
        if name not in workflow.global_resources:
            workflow.register_resource(name, amount)


# Each file name belongs to one rule: which of them makes results/speed.csv, a table or a benchmark, is in the configuration.
wildcard_constraints:
    **{kind: "|".join(map(re.escape, names)) or "-" for kind, names in plan.named.items()},
    key="[0-9a-f]{12}",
    name="[^/]+",
    # Called otherwise than the names of what they measure, because --dag leaves out what a job has in common with those.
    evaluation="[^/]+",
    measurement="[^/]+",


rule all:
    default_target: True
    input:
        plan.outputs("table"),
        plan.outputs("claims"),
        plan.outputs("benchmark"),
        plan.outputs("figure"),
        plan.outputs("picture"),


include: "workflow/rules/data.smk"
include: "workflow/rules/clip.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/backbone.smk"
include: "workflow/rules/proposals.smk"
include: "workflow/rules/systems.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/benchmarks.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/pictures.smk"
