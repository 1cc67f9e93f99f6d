"""Which clip comes when: numbered random streams, mixes, curricula, pools."""
