"""What this machine is and can do: speeds that were measured, memory in use, known problems."""
