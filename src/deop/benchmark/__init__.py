"""How fast systems are at sizes of one's choice, with random weights: what is measured, on which networks, and how."""
