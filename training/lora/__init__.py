"""LoRAs: small changes of a published text-to-image model, trained while its own weights stay as they are."""
