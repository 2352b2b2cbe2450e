from setuptools import setup
P={f"dreamloop.{n.replace('/','.')}":n for n in ["models","models/core","models/networks","models/training","models/training/games","models/training/recipes","runtime","runtime/engines","demos"]}
setup(name="dreamloop",version="0.1.0",package_dir=P,packages=list(P))
