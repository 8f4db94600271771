"""What is to be known of a machine with a GPU, in four parts of minutes: the tests that need one, the table of peers, a training, and a
distance measured in three ways. `python -m benchmarks.gpu_check --help`; docs/gpu.md says how to run it where there is no network."""
