"""Studies: questions asked of small models made here. The testbed, its pairs, the demo."""
