"""What can be wrong with a sparse autoencoder. Each message says what would be right."""


class SaeError(ValueError):
    """This autoencoder cannot be used."""


class CorruptSae(SaeError):
    """Its files are damaged, incomplete, too large, or contradict each other."""


class UnsafeSae(SaeError):
    """Its weights are a pickle, which runs code when read."""


class UnsupportedSae(SaeError):
    """Its files are sound, and ask for something that is not computed here."""


class WrongHook(SaeError):
    """It reads something else than the residual stream between decoder blocks."""


class WrongModel(SaeError):
    """It was trained on another model than the one served."""
