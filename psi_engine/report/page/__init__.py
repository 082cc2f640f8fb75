"""The report page: a folder that opens from disk, without a server and without a network.

``words`` says the numbers in plain language, ``core`` builds what the page needs at once,
``details`` what it needs of a channel, ``pictures`` the thumbnails and host images, ``layout``
the map, ``evidence`` what swaps and validation found; ``site`` writes it all. The page itself is
in ``assets``: one HTML template, style sheets and plain scripts.
"""

from psi_engine.report.page.pictures import Pictures
from psi_engine.report.page.site import MAX_SIZE, Report, Sources, held_report, write_report

__all__ = ["MAX_SIZE", "Pictures", "Report", "Sources", "held_report", "write_report"]
