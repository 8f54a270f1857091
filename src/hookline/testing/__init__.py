"""What users import in their tests: scripted upstreams and providers, a pipeline kit, a fake clock, store contracts."""
