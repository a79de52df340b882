from lora_files import make, real

__all__ = ["make", "real"]
