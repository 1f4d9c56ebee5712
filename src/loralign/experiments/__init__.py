"""Experiments: many runs of one recipe, each done once, handed out to any number of workers, and told in one table.

A cell is a whole run of ``loralign align`` or ``adapt`` (:mod:`.cell`), run and kept by its fingerprint
(:mod:`.running`, :mod:`.store`), measured beyond its own scores under fingerprints that are not its own
(:mod:`.measurement`, :mod:`.measuring`) and read back sample by sample (:mod:`.outcomes`). Optuna hands cells out
(:mod:`.grid`), :mod:`.experiment` works through arms and seeds, :mod:`.finding` puts what they found into tables,
charts and one Parquet file, and :mod:`.questions` says where these go. Every other module is an experiment.
"""
