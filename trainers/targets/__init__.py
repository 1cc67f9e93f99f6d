"""Target models of MTMFI and FRTM: fitted and kept."""
