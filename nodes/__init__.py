"""The pack's nodes, one class each; every file ends in NODES."""

from .comfyui.input_files import add_recording
from .comfyui.schema import ComfyExtension, checked, io
from .download import NODES as DOWNLOAD
from .edit import NODES as EDIT
from .latent_files import NODES as LATENT_FILES
from .latents import NODES as LATENTS
from .lora import NODES as LORA
from .models import NODES as MODELS
from .output import NODES as OUTPUT
from .preview import NODES as PREVIEW
from .sampling import NODES as SAMPLING
from .studio import NODES as STUDIO
from .text import NODES as TEXT
from .training import NODES as TRAINING

ALL = (MODELS, LORA, TEXT, LATENTS, EDIT, SAMPLING, PREVIEW, STUDIO, OUTPUT, LATENT_FILES, DOWNLOAD, TRAINING)
NODES: list[type[io.ComfyNode]] = [checked(node) for nodes in ALL for node in nodes]


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_recording()
        return NODES
