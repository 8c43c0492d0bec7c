"""What clients may ask for: routes, validation and answers of each API. How a run is streamed belongs to ``runs``."""
