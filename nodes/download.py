"""The node that downloads models after confirmation."""

from ..sa3_core.checkpoints import releases
from ..sa3_core.checkpoints.checkpoint import WEIGHTS
from ..sa3_core.checkpoints.download import download
from .comfyui import folders
from .comfyui.progress import Progress, show_status
from .comfyui.schema import io, schema


class Download(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        sizes = "; ".join(f"{release.variant} {release.size():.1f} GB" for release in releases.RELEASES.values())
        model = f"{sizes}. {releases.OPTIMIZED} is refused: it {releases.OPTIMIZED_REASON}."
        source = (
            "official: Stability AI's files, pinned to a revision and checked by hash; three models need a login. "
            f"mirror: 16-bit copies in {releases.MIRROR}, half the size, no login, not pinned."
        )
        return schema(
            "SA3_Download",
            display_name="SA3 Download",
            description="Downloads a model from the Hugging Face Hub into ComfyUI's model folders. Without confirm it only reports "
            "what it would download. " + releases.TERMS,
            inputs=[
                io.Combo.Input("model", options=[*releases.RELEASES, releases.OPTIMIZED], default="small-music", tooltip=model),
                io.Combo.Input("source", options=list(releases.SOURCES), default=releases.SOURCES[0], tooltip=source),
                io.Boolean.Input("confirm", default=False, tooltip="Download: you have read and accept the licence in the report."),
            ],
            outputs=[io.String.Output("report")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model, source, confirm):
        return folders.download_folder(model).exists() or float("nan")  # NaN: never cached

    @classmethod
    def execute(cls, model, source, confirm) -> io.NodeOutput:
        release = releases.find(model)
        target = folders.download_folder(model)
        text = release.describe(target.parent, source)
        if (target / WEIGHTS).is_file():
            text = f"{release.variant} is already in {target}."
        elif confirm:
            show_status(text)
            bar = Progress(1, resumes=True)
            download(release, target.parent, source, lambda done, total: bar(done, total, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"))
            text = f"Downloaded and verified. {text}\nPress R to refresh the file lists."
        else:
            text = f"Nothing was downloaded. Set confirm to download:\n{text}"
        show_status(text)
        return io.NodeOutput(text, ui={"text": [text]})


NODES = [Download]
