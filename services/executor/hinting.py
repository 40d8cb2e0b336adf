"""The names of the hint that a run can be claimed: the queue and the actor that takes it."""

#: Each message names a run; it is a hint, since runners look by themselves once a second.
QUEUE = "runs"
ACTOR = "wake_up"
