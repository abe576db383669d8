"""Gates: the contract (`routing`), the pipeline (`router`), its parts, and the catalogue (`recipes`)."""
