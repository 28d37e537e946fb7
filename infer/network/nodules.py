"""Opens the models of a run: a segmentation model, and perhaps a classifier, or both from one file NAME.nodules."""

from pathlib import Path

from slicemill.common.errors import UsageError
from slicemill.infer.network.classifier import Classifier, open_classifier
from slicemill.infer.network.model import Model, check_ends, open_model
from slicemill.infer.runtime.providers import Provider
from slicemill.store.nodules_file import BUNDLE_SUFFIX, read_bundle


def has_classifier(model: Path, classifier: Path | None) -> bool:
    """Return whether a run judges candidates.

    Raises
    ------
    UsageError
        There would be two classifiers.
    """
    if model.suffix == BUNDLE_SUFFIX and classifier is not None:
        raise UsageError(f"--classifier: {model.name} has a classifier already. Omit --classifier.")
    return model.suffix == BUNDLE_SUFFIX or classifier is not None


def open_segmentation(path: Path, provider: Provider, device: int = 0, batch: int = 0) -> Model:
    """Open a segmentation model, also that of a file NAME.nodules.

    Raises
    ------
    ModelError
        It is not a slicemill model of this contract.
    ProviderError
        The provider does not run here.
    """
    if path.suffix != BUNDLE_SUFFIX:
        return open_model(path, provider, device, batch)
    content = read_bundle(path).segmentation
    check_ends(content, path)
    return Model(path.with_suffix(".onnx"), content, provider, device, batch)


def open_judge(model: Path, classifier: Path | None, provider: Provider, device: int = 0) -> Classifier | None:
    """Open the classifier of a run; None without one.

    Raises
    ------
    ModelError
        It is not a model of kind `crops`.
    ProviderError
        The provider does not run here.
    """
    if not has_classifier(model, classifier):
        return None
    if classifier is not None:
        return open_classifier(classifier, provider, device)
    content = read_bundle(model).classifier
    check_ends(content, model)
    return Classifier(model.with_suffix(".classifier.onnx"), content, provider, device)
