"""What is measured on a model beside losses, one file each: a function from a `ProbeContext` to a `Probe`."""
