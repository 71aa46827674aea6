"""One module a pipeline stage, each with ``run(job)``: reads the job's inputs, writes its output."""
