"""What a gate is put into: experts and the Mixture-of-Experts layer."""
