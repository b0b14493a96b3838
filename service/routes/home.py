"""GET /: what this is, and links to the rest."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Reverie</title>
<style>body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }</style>
<h1>Reverie</h1>
<p>This service draws images with a diffusion model: ask for some, look at the job, fetch the pixels.
The same seed gives the same pixels.</p>
<pre>curl -H 'Content-Type: application/json' -H 'Prefer: wait=30' \\
     -d '{"steps": 50, "batch": 1}' <span id="origin"></span>/generate</pre>
<p><a href="/docs">API</a> · <a href="/models">Models</a> · <a href="/readyz">Is it ready?</a></p>
<script>document.getElementById("origin").textContent = location.origin</script>
</html>
"""


@router.get("/", include_in_schema=False)
async def home() -> HTMLResponse:
    return HTMLResponse(PAGE)
