"""The main job, narrated: runs on the host itself, through the same interfaces an operator has."""
