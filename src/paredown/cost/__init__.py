"""What a captured run costs on a device: time, memory, data movement, energy."""

from paredown.cost.price import Cost, Priced, price

__all__ = ["Cost", "Priced", "price"]
