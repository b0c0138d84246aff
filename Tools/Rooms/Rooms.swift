// The module's essay goes here.
