"""The node that downloads, on the user's word."""

from ..sa3_core.checkpoints import releases
from ..sa3_core.checkpoints.checkpoint import WEIGHTS
from ..sa3_core.checkpoints.download import download
from .comfyui import folders
from .comfyui.progress import Progress, warn
from .comfyui.schema import io, schema


class Download(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Download",
            display_name="SA3 Download",
            description="Downloads a model from the Hugging Face Hub into ComfyUI's model folders. Without confirm it only says what it "
            "would do. " + releases.TERMS,
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*releases.RELEASES, releases.OPTIMIZED],
                    default="small-music",
                    tooltip=f"{'; '.join(f'{r.variant} {r.size():.1f} GB' for r in releases.RELEASES.values())}. "
                    f"{releases.OPTIMIZED} is refused: it {releases.OPTIMIZED_REASON}.",
                ),
                io.Combo.Input(
                    "source",
                    options=list(releases.SOURCES),
                    default=releases.SOURCES[0],
                    tooltip=f"official: Stability AI's own files, pinned and checked by their hash; three models need a login. mirror: "
                    f"16-bit copies in {releases.MIRROR}, half the size, no login, not pinned.",
                ),
                io.Boolean.Input(
                    "confirm", default=False, tooltip="Really download: you have read and accept the licence named in the report."
                ),
            ],
            outputs=[io.String.Output("report")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, model, source, confirm):
        return folders.download_folder(model).exists()

    @classmethod
    def execute(cls, model, source, confirm) -> io.NodeOutput:
        release = releases.find(model)
        target = folders.download_folder(model)
        text = release.describe(target.parent, source)
        if (target / WEIGHTS).is_file():
            text = f"{release.variant} is there already: {target}."
        elif confirm:
            warn(text)
            bar = Progress(1)
            download(release, target.parent, source, bar)
            text = f"Downloaded and checked. {text}\nPress R to refresh the lists of files."
        else:
            text = f"Nothing was downloaded; set confirm to download:\n{text}"
        return io.NodeOutput(text, ui={"text": [text]})


NODES = [Download]
