"""Files that a test writes for each image."""

from __future__ import annotations

from pathlib import Path

from ovenet.data.dataset import ListDataset
from ovenet.inference.inferencer import Prediction, SlidingWindowInferencer
from ovenet.inference.pictures import predicted_row, prediction_path, save_picture, save_prediction
from ovenet.report.gallery import picture_data, picture_path, picture_sides, save_picture_data
from ovenet.structures import Sample
from ovenet.utils import distributed
from ovenet.utils.behind import Behind

NUM_PICTURE_ROWS = 4


class ImageWriter:
    """Writes the requested files of each image in background threads.

    Args:
        dataset: the whole list.
        predictor: draws the picture rows.
        folder: folder of the test.
        save_predictions: write the predicted classes; always done for a list without labels.
        gallery: write the pictures of the report.
    """

    def __init__(
        self,
        dataset: ListDataset,
        predictor: SlidingWindowInferencer,
        folder: Path,
        *,
        save_predictions: bool,
        gallery: bool,
    ):
        self._dataset, self._predictor, self._folder = dataset, predictor, folder
        self.saves_predictions = save_predictions or not dataset.has_labels
        self.photo_side, self.grid_side = picture_sides(len(dataset)) if gallery else (0, 0)
        self._num_rows_left = NUM_PICTURE_ROWS if distributed.is_main() else 0
        self._behind = Behind()

    def write(self, index: int, sample: Sample, prediction: Prediction) -> None:
        """Queues the files of one image; waits while too many are unwritten.

        Raises:
            OSError: an earlier file could not be written.
        """
        info = self._dataset.info
        if self.saves_predictions:
            folder = self._folder / "predictions"
            self._behind.call(save_prediction, prediction.labels["fused"], sample.name, folder, info)
            if self._num_rows_left:
                self._num_rows_left -= 1
                row = predicted_row(self._predictor, sample, info)
                self._behind.call(save_picture, row, (self._folder / "pictures" / sample.name).with_suffix(".png"))
        if self.grid_side:
            self._behind.call(self._write_picture_data, index, sample, prediction)

    def wait(self) -> None:
        """Returns when all files are written.

        Raises:
            OSError: a file could not be written.
        """
        self._behind.wait()

    def _write_picture_data(self, index: int, sample: Sample, prediction: Prediction) -> None:
        data = picture_data(
            sample,
            prediction,
            self._dataset.info.num_classes,
            photo_side=self.photo_side,
            grid_side=self.grid_side,
        )
        save_picture_data(data, picture_path(self._folder, index))

    def has_written(self, index: int) -> bool:
        """Whether the files of an image exist; picture rows, written for a few images only, do not count."""
        name = self._dataset.pairs[index][0]
        saved = prediction_path(self._folder / "predictions", name).is_file()
        return (saved or not self.saves_predictions) and (
            not self.grid_side or picture_path(self._folder, index).is_file()
        )
