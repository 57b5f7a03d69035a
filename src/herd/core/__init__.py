"""Pure: the fleet's words as frozen types, events, actions, and the scheduler."""
