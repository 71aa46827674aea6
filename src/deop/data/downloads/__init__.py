"""The archives of the paper's datasets: fetched, checked, unpacked."""
