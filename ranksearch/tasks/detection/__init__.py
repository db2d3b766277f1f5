"""Detection: MobileNetV1-SSD, its loss and metric, and scenes to find things in.

ssd                 the net and its prior boxes
boxes               corners, centres, offsets, overlaps
loss                multibox loss, distillation
average_precision   the metric
scenes              the data, drawn by code
task                all of it as tasks: `small_ssd_task`, `ssd_task`, `detection_task`
"""

from ranksearch.tasks.detection.task import detection_task, small_ssd_task, ssd_task

__all__ = ["detection_task", "small_ssd_task", "ssd_task"]
