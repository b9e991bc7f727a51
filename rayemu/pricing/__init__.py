"""What a run would have taken and cost on modelled hardware: from its record, as a graph of events."""
