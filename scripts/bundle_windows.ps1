# Makes a bundle on Windows: an environment of its own, the project, the package, the folder.
#
#   .\scripts\bundle_windows.ps1 -Package .\qwen3-4b-core-ultra-int4 -Output .\my-app [-Zip]
#       [-Devices cpu] [-WithoutServer] [-Python py]
#
# Needs Python 3.11 or newer from python.org (any user can install it, without administrator) and
# reaches PyPI. Run it on the kind of machine that the bundle is for. See docs/bundle.md.
param(
    [Parameter(Mandatory = $true)][string]$Package,
    [Parameter(Mandatory = $true)][string]$Output,
    [string]$Devices = "",
    [string]$Python = "py",
    [switch]$WithoutServer,
    [switch]$Zip,
    [switch]$Force
)
$ErrorActionPreference = "Stop"
Set-StrictMode -Version Latest

function Invoke-Checked {
    # Runs a program; its failure ends this script, which PowerShell does not see to by itself.
    param([string]$Program, [string[]]$Arguments)
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) {
        throw "$Program ended with code $LASTEXITCODE"
    }
}

$project = Split-Path -Parent $PSScriptRoot
$environment = Join-Path $project ".venv-bundle"
if (-not (Test-Path (Join-Path $environment "Scripts\python.exe"))) {
    Invoke-Checked $Python @("-m", "venv", $environment)
}
$interpreter = Join-Path $environment "Scripts\python.exe"
# Exact versions, each wheel's hash compared; among them msvc-runtime, Visual Studio's C++ library,
# which a few machines do not have. The server's packages are always installed, and left out of the
# bundle with -WithoutServer.
$requirements = Join-Path $project "runtime\qwen_edge\bundle\requirements.txt"
Invoke-Checked $interpreter @("-m", "pip", "install", "--require-hashes", "-r", $requirements)
Invoke-Checked $interpreter @("-m", "pip", "install", "--no-deps", $project)

$line = @("-m", "qwen_edge.cli", "bundle", $Package, "--output", $Output)
if ($Devices) { $line += @("--devices", $Devices) }
if ($WithoutServer) { $line += "--without-server" }
if ($Zip) { $line += "--zip" }
if ($Force) { $line += "--force" }
Invoke-Checked $interpreter $line

# What a machine without Python has: no PATH to one, and a folder with a space and other letters.
$moved = Join-Path $env:TEMP "qwen edge $([char]0x6D4B)$([char]0x8BD5)"
if (Test-Path $moved) { Remove-Item -Recurse -Force $moved }
Copy-Item -Recurse $Output $moved
try {
    $env:PATH = "$env:SystemRoot\System32;$env:SystemRoot"
    Invoke-Checked (Join-Path $moved "qwen-edge.exe") @("verify")
    Invoke-Checked (Join-Path $moved "qwen-edge.exe") @("run", "--quiet", "Say hello.")
}
finally {
    Remove-Item -Recurse -Force $moved
}
