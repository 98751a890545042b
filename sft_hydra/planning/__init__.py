"""Architecture, topology, layout and estimates: what a run will be, in integers and without torch."""
