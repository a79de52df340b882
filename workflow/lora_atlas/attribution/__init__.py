"""Pictures → LoRAs by one gradient of the frozen base: the command, and how well it does on a study."""
