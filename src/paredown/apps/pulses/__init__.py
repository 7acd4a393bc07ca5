"""Time and energy of detector pulses by a small integer network, after PulseDL-II (2209.00884)."""
