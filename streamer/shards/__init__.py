"""An index in parts: which partitions a process holds, and what the parts of an answer carry so that they add up to one."""
