"""Search for a machine instead of a network: one interface between agents and cost models."""

from paredown.search.gym.agents import AGENTS, Agent
from paredown.search.gym.environment import Action, Environment, Knob
from paredown.search.gym.proxy import Proxy

__all__ = ["AGENTS", "Action", "Agent", "Environment", "Knob", "Proxy"]
